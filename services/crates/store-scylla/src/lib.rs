//! The stores on ScyllaDB or Cassandra, over CQL.
