from .callback import TraDyCallback
from .trainer import TraDyTrainer


__all__ = ["TraDyCallback", "TraDyTrainer"]
