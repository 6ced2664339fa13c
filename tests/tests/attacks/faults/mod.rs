//! Faults: whatever call fails, to the storage or of the system, the store is sound and work goes on.

mod storage;
mod system;
