//! Names of images and snapshots, and how a command line refers to them.

