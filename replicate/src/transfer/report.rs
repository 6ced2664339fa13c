//! The report of a transfer.

use chunkstore::metrics::Counter;
use serde::{Deserialize, Serialize};

use crate::rpc::client::Client;

/// The counters of a transfer's tasks.
#[derive(Debug, Default)]
pub(super) struct TransferCounters {
    pub(super) chunks_considered: Counter,
    pub(super) chunks_sent: Counter,
    pub(super) deltas_sent: Counter,
    pub(super) record_bytes: Counter,
    pub(super) plain_bytes_considered: Counter,
    pub(super) plain_bytes_sent: Counter,
}

/// The report of a transfer, over all its attempts. Bytes are those of the connections to the other site, all of them,
/// before encryption; the handshake is counted separately.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TransferReport {
    /// Whether nothing was changed.
    pub dry_run: bool,
    /// Snapshots that the receiver has now, in order.
    pub snapshots_sent: Vec<String>,
    /// Snapshots that could not be sent because they are damaged here or there, or were removed meanwhile.
    pub snapshots_failed: Vec<String>,
    /// Snapshots that it had already.
    pub snapshots_present: u64,
    /// Bytes that this side sent.
    pub wire_bytes_sent: u64,
    /// Bytes that this side received.
    pub wire_bytes_received: u64,
    /// Bytes sent after encryption; 0 without encryption.
    pub tls_bytes_sent: u64,
    /// Of `wire_bytes_*`: bytes of the handshakes, both ways.
    pub handshake_bytes: u64,
    /// Bytes of the records that were sent or, in a dry run, would be.
    pub record_bytes: u64,
    /// All other bytes except the handshakes', both ways.
    pub negotiation_bytes: u64,
    /// Number of waits for the link's latency, without the handshakes.
    pub round_trips: u64,
    /// Chunks that differ from the snapshot before; in the last attempt.
    pub chunks_considered: u64,
    /// Chunks that were sent.
    pub chunks_sent: u64,
    /// Of those: as deltas.
    pub deltas_sent: u64,
    /// Plain bytes of the chunks that differ and did not have to be sent.
    pub saved_bytes: u64,
    /// Wall time, without the pauses between attempts.
    pub elapsed_s: f64,
    /// Plain bytes of the chunks that were sent.
    #[serde(skip)]
    plain_bytes_sent: u64,
}

impl TransferReport {
    pub(super) fn add_counters(&mut self, counters: &TransferCounters) {
        self.record_bytes += counters.record_bytes.get();
        self.chunks_considered = counters.chunks_considered.get();
        self.chunks_sent += counters.chunks_sent.get();
        self.deltas_sent += counters.deltas_sent.get();
        self.plain_bytes_sent += counters.plain_bytes_sent.get();
        self.saved_bytes = counters.plain_bytes_considered.get().saturating_sub(self.plain_bytes_sent);
    }

    pub(super) fn add_meters(&mut self, far: &[Client]) {
        let mut round_trips = 0;
        for client in far {
            let meter = client.meter();
            self.wire_bytes_sent += meter.sent_bytes();
            self.wire_bytes_received += meter.received_bytes();
            self.handshake_bytes += client.handshake_bytes();
            self.negotiation_bytes +=
                meter.sent_bytes() + meter.received_bytes() - client.handshake_bytes() - meter.record_bytes();
            self.tls_bytes_sent += client.tls_bytes_sent();
            round_trips = round_trips.max(client.round_trips());
        }
        self.round_trips += round_trips;
    }
}
