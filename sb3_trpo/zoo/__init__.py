"""The ``sb3-trpo`` command: training and its pictures, on top of the RL Zoo.

``import sb3_trpo`` imports nothing from here, because importing the RL Zoo patches gymnasium.
"""
