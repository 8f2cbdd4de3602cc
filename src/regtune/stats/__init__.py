"""Statistics over seeds and examples; knows no task. `compare` is the only comparison of records.

from regtune.stats import compare, measured

compare(measured(plain, metric), {"N = 4": measured(with_registers, metric)})
"""

from regtune.stats.comparison import Comparison, compare, compare_many
from regtune.stats.scores import ArmScores, measured

__all__ = ["ArmScores", "Comparison", "compare", "compare_many", "measured"]
