"""`python -m launch.sweep`: a hyperparameter search by Ray Tune for each quality level.

`space` says what is searched and `study` keeps what was found, in an Optuna study on disk; `search` and `scheduler` are
how Ray Tune asks for the next trial and when to stop one; `trial` is what Ray runs, the ordinary training; `cluster` is
where. A sweep goes on by what the study and the run folders hold, nothing else.
"""
