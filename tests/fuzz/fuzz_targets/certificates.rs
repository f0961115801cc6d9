//! Credentials as files and as what the other end shows.
#![no_main]

use libfuzzer_sys::fuzz_target;
use quorate_transport::tls::{self, Authority, Credentials};

fuzz_target!(|data: &[u8]| {
    let _ = tls::subject_of(&data.to_vec().into());
    let _ = Authority::from_pem(data);
    let _ = Credentials::from_pem(data, data, data);
});
