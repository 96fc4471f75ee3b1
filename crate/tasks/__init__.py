"""One file per kind of step. Each has

    run(resolved, *, runtime, folder, identity, parent, data_root) -> (metrics, details)

where `metrics` are the numbers of metrics.json and `details` what run.json records beside them.
"""
