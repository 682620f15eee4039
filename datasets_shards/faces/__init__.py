"""The face stage: detection, tracking, and the table of what was found."""
