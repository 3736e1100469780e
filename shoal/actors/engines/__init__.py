"""The engines that start containers: one contract (`contract.py`) and one module or package per engine. Without Ray."""
