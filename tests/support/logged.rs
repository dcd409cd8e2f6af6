//! What is logged while a test does something.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tracing::subscriber::DefaultGuard;

/// The lines of this thread's log, from here on and as `pgset serve` writes them.
pub struct Log {
    lines: Lines,
    _guard: DefaultGuard,
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(text)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

// === impl Log ===

impl Log {
    /// Begins it.
    pub fn start() -> Self {
        let lines = Lines::default();
        let written = lines.clone();
        let form = tracing_subscriber::fmt().json().flatten_event(true).with_span_list(false);
        let all = form.with_max_level(tracing::Level::TRACE);
        let subscriber = all.with_writer(move || written.clone()).finish();
        Self { lines, _guard: tracing::subscriber::set_default(subscriber) }
    }

    /// What was logged so far, at any level.
    pub fn text(&self) -> String {
        String::from_utf8(self.lines.0.lock().unwrap().clone()).unwrap()
    }

    /// The same, line by line.
    pub fn lines(&self) -> Vec<Value> {
        self.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The one line with that message.
    pub fn line(&self, message: &str) -> Value {
        let mut found: Vec<Value> = self.lines().into_iter().filter(|line| line["message"] == message).collect();
        assert_eq!(found.len(), 1, "{message}: {:?}", self.lines());
        found.remove(0)
    }
}
