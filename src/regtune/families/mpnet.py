"""MPNet (Song 2020): absolute positions that skip padding, and a relative position bias in every layer."""

from regtune.families._family import Family

MPNET = Family(name="MPNet", model_types=("mpnet",), positions="relative", position_offset=2)
