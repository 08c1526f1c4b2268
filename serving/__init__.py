"""From a trained policy to a running service: bundle, export, model server, client.

    bundle       what is shipped: policy, config, spec, provenance, golden inputs and outputs
    export       a bundle as a version directory for TensorFlow Serving and for our own server
    verify       runs such a directory as TensorFlow Serving does, in a process without JAX
    tf_ops       jaxpr to plain TensorFlow operations: a SavedModel that needs no XLA

`export`, `tf_ops` and `verify` import TensorFlow, which takes seconds; nothing else here does.
"""
