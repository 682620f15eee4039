"""P(fake) of images and videos from anywhere: files -> faces -> crops -> scores -> tables.

Faces are found and cut as `datasets_shards` does it for training data, in processes that import no torch: the modules
`inputs`, `crops` and `recipe` need none.
"""
