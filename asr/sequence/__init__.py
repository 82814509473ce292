"""The classic sequence-modelling tasks, on the toolkit's own stacks: is the stack broken, or the data?

A task is a file in `asr/sequence/tasks/`; a recipe, `recipes/sequence/TASK/`, has its settings and targets.
"""
