from .baselines import BASELINES
from .grid import Grid, chosen_learning_rates
from .results import Results, summary
from .runs import Run, Task, run_one


__all__ = ["BASELINES", "Grid", "Results", "Run", "Task", "chosen_learning_rates", "run_one", "summary"]
