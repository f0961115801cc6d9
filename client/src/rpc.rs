//! Requests and answers over long-lived QUIC streams ("lanes"), multiplexed and coalesced.
