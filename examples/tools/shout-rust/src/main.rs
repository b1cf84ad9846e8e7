// shout, in Rust: cargo build --release --target wasm32-wasip1, then copy target/wasm32-wasip1/release/shout.wasm beside
// tool.toml. Not built by akbox's own tests.
use std::io::Read;

fn main() {
    let mut input = String::new();
    std::io::stdin().read_to_string(&mut input).expect("parameters");
    let params: serde_json::Value = serde_json::from_str(&input).expect("JSON");
    let text = params["text"].as_str().unwrap_or_default().to_uppercase();
    println!("{}", serde_json::json!({ "text": text }));
}
