"""Fine-tune any model that the device can run, inside a memory budget.

Names are imported when they are first used, from the modules that `__init__.pyi` gives.
"""

import lazy_loader


__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
