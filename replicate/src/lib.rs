//! The protocol between vmstore's programs and sites: server, client, push and pull.

pub mod address;
