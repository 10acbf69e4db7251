// Unpacks the images of this directory. Included by the tests of the library and by the end-to-end tests.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Unpacks an image into `directory`; what is zero becomes a hole.
pub fn unpack(name: &str, directory: &Path) -> PathBuf {
    let packed = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/media").join(format!("{name}.img.zst"));
    let packed = File::open(&packed).unwrap_or_else(|error| panic!("{}: {error}", packed.display()));
    let mut bytes = ruzstd::decoding::StreamingDecoder::new(packed).expect("a frame of zstd");
    let path = directory.join(format!("{name}.img"));
    let file = File::create(&path).expect("a file in a temporary directory");
    let (mut page, mut at) = (vec![0; 1 << 16], 0);
    loop {
        let mut len = 0;
        while len < page.len() {
            match bytes.read(&mut page[len..]).expect("whole") {
                0 => break,
                more => len += more,
            }
        }
        for (nth, part) in page[..len].chunks(4096).enumerate() {
            if part.iter().any(|byte| *byte != 0) {
                file.write_all_at(part, at + nth as u64 * 4096).expect("room");
            }
        }
        at += len as u64;
        if len < page.len() {
            break;
        }
    }
    file.set_len(at).expect("room");
    path
}
