"""`python -m launch.study`: a declared grid of trainings, their evaluations and their report, as one piece of work.

A cell of the grid is an ordinary training in a run folder of its own, started by the command that a user would type.
What is done is read from the run folders, so the same command starts a study, goes on with it and finds it finished.
"""
