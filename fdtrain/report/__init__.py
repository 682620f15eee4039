"""One page of what runs came to: figures, tables and what is missing of them, with the reasons.

The modules need matplotlib, and torch where a model is looked into; the command line imports nothing of them to read
its arguments.
"""

MAX_FACES = 48
"""More faces of one kind than these are a data set, no report."""

STUDY_FILE, STUDY_FORMAT = "study.json", "fdtrain-study"
"""What a study writes of its cells for `report --study`; `fdtrain.report.study` says what is in it."""
