"""Scripts with absl flags, `python -m launch.train` and its siblings: composition and I/O only.

    train       an agent from a source; the one visible loop
    evaluate    a checkpoint's scores, curve and video
    export      a checkpoint to a SavedModel
    serve       a SavedModel over gRPC and REST
    benchmark   steps per second and scores beside those of others

`flags` and `command_line` are their border: flags, help, one sentence and exit code 2 for bad
input. `experiment` is a run and its workdir, `presets` the tuned configs.
"""
