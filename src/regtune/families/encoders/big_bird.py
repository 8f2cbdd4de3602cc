"""BigBird (Zaheer 2020), with full attention: BERT's parts under BERT's names."""

from regtune.families._family import Family

BIG_BIRD = Family(
    name="BigBird",
    model_types=("big_bird",),
    positions="absolute",
    unsupported=(
        (
            "attention_type",
            "original_full",
            "sparse attention sees blocks of neighbours and a few blocks drawn at random, and registers in front would "
            "shift every block; load it with attention_type='original_full'",
        ),
    ),
)
