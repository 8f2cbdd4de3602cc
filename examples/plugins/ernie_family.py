"""An architecture of your own: ERNIE (Sun 2019) keeps BERT's parts under BERT's names, and adds one more embedding.

regtune --plugin ernie_family.py doctor nghuyong/ernie-2.0-base-en
"""

from regtune import Family, register

register.family(
    Family(
        name="ERNIE",
        model_types=("ernie",),
        positions="absolute",  # added in the embeddings: registers cost no position
        relevance=("attnlrp", "cp-lrp"),
    )
)
