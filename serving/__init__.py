"""From a trained policy to a running service: bundle, export, model server, client.

    bundle          what is shipped: policy, config, spec, provenance, golden inputs and outputs
    export          a bundle as a version directory for TensorFlow Serving and for our own server
    parity          both halves of that directory must reproduce the golden outputs
    verify          runs its SavedModel as TensorFlow Serving does, in a process without JAX
    tf_ops          jaxpr to plain TensorFlow operations: a SavedModel that needs no XLA
    model_server    TensorFlow Serving's gRPC and REST protocols over a policy run in JAX
    client          asks either server, with a deadline and a safe default action

`export`, `tf_ops` and `verify` import TensorFlow, which takes seconds; nothing that serves does.
"""
