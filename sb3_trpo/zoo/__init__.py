"""The ``sb3-trpo`` command: training and its pictures, on top of the RL Zoo.

Nothing here is imported by ``import sb3_trpo``: importing the RL Zoo patches gymnasium.
"""
