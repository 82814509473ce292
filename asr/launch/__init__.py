"""From a recipe to a job: scripts for SLURM, torchrun and Kubernetes, and the self-test that goes before training.

Nothing here but the self-test imports torch, and that only when it runs.
"""
