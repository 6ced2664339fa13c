//! Every kind of damage to every kind of file.
