"""Adds registers to a pretrained encoder, looks at what they attend to, and takes them away again.

python examples/add_registers.py             # MiniLM from the demo extra
python examples/add_registers.py roberta-base
"""

from __future__ import annotations

import sys

import torch

import regtune


def main(name: str = "minilm") -> None:
    session = regtune.open(name, attention="eager", device="cpu")
    model = session.model
    inputs = session.reader("Who built the bridge?", "The bridge was built by Ada in 1843.", return_tensors="pt")
    with torch.no_grad():
        plain = model(**inputs)[0]

        regtune.add_registers(model, regtune.RegisterConfig(num_registers=4))
        output = model(**inputs, output_attentions=True)
        length = inputs["input_ids"].shape[1]
        print(f"{regtune.num_registers(model)} registers; the output keeps the text's {length} tokens:", end=" ")
        print(tuple(output[0].shape))
        for layer, attention in enumerate(output.attentions, start=1):
            share = regtune.split_attention(attention, 4).text_to_registers.sum(-1).mean()
            print(f"  layer {layer}: the text gives registers {share:.1%} of its attention")

        with regtune.disable_registers(model):
            print("switched off, identical to the plain model:", torch.equal(plain, model(**inputs)[0]))
        regtune.remove_registers(model)
        print("removed, identical to the plain model:", torch.equal(plain, model(**inputs)[0]))


if __name__ == "__main__":
    main(*sys.argv[1:])
