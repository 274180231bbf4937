//! A role's gRPC server: bound port, layers, health, reflection, drain.
