"""Adds registers to a pretrained encoder, looks at what they attend to, and takes them away again.

python examples/add_registers.py             # MiniLM from the demo extra
python examples/add_registers.py roberta-base
"""

from __future__ import annotations

import sys

import torch

import regtune
from regtune.models.loading import load_question_answering_model, load_tokenizer


def main(name: str = "minilm") -> None:
    tokenizer = load_tokenizer(name)
    model = load_question_answering_model(name, attention="eager").eval()
    inputs = tokenizer("Who built the bridge?", "The bridge was built by Ada in 1843.", return_tensors="pt")
    with torch.no_grad():
        plain = model(**inputs).start_logits

        regtune.add_registers(model, regtune.RegisterConfig(num_registers=4))
        output = model(**inputs, output_attentions=True)
        length = inputs["input_ids"].shape[1]
        print(f"{regtune.num_registers(model)} registers; the logits keep the text's {length} tokens:", end=" ")
        print(tuple(output.start_logits.shape))
        for layer, attention in enumerate(output.attentions, start=1):
            share = regtune.split_attention(attention, 4).text_to_registers.sum(-1).mean()
            print(f"  layer {layer}: the text gives registers {share:.1%} of its attention")

        with regtune.disable_registers(model):
            print("switched off, identical to the plain model:", torch.equal(plain, model(**inputs).start_logits))
        regtune.remove_registers(model)
        print("removed, identical to the plain model:", torch.equal(plain, model(**inputs).start_logits))


if __name__ == "__main__":
    main(*sys.argv[1:])
