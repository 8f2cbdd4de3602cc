"""BERT (Devlin 2019): absolute positions, LayerNorm at the end of the embeddings. Also the paper's RegBERT."""

from regtune.families._family import LEDGER, Family

BERT = Family(name="BERT", model_types=("bert",), positions="absolute", relevance=(*LEDGER, "chefer"))
