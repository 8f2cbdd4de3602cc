"""BERT (Devlin 2019): absolute positions, LayerNorm at the end of the embeddings. Also the paper's RegBERT."""

from regtune.families._family import Family

BERT = Family(name="BERT", model_types=("bert",), positions="absolute")
