//! The HdrHistogram log: one histogram for each interval, in the format of the HdrHistogram tools.
//! Values are nanoseconds. The maximum in plain text is in milliseconds, as those tools expect.

use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};

use crate::files::Replacement;
use crate::measure::Measured;

/// The divisor for values in plain text: nanoseconds to milliseconds.
const MILLISECOND: f64 = 1e6;

/// The log file. Each line is complete in the file as soon as it is written.
pub(crate) struct Log {
    file: Replacement,
    started: SystemTime,
    /// True exactly when the header has been written.
    has_head: bool,
    serializer: V2DeflateSerializer,
}

impl Log {
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        let file = Replacement::new(path)?;
        let started = SystemTime::now();
        Ok(Self { file, started, has_head: false, serializer: V2DeflateSerializer::new() })
    }

    /// Sets the start; all times count from it.
    pub(crate) fn begin(&mut self, started: SystemTime) {
        self.started = started;
    }

    /// The header of the file.
    fn head(&mut self) -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        IntervalLogWriterBuilder::new()
            .add_comment("[echo-load: values are nanoseconds, Interval_Max is milliseconds]")
            .with_start_time(self.started)
            .with_base_time(self.started)
            .with_max_value_divisor(MILLISECOND)
            .begin_log_with(&mut text, &mut self.serializer)?;
        text.extend_from_slice(
            b"\"StartTimestamp\",\"Interval_Length\",\"Interval_Max\",\
              \"Interval_Compressed_Histogram\"\n",
        );
        Ok(text)
    }

    /// Appends an interval that began `from` after the start. In an open loop these are two
    /// histograms with different tags.
    pub(crate) fn write(&mut self, from: Duration, measured: &Measured) -> io::Result<()> {
        let mut text = Vec::new();
        let mut writer = IntervalLogWriterBuilder::new()
            .with_max_value_divisor(MILLISECOND)
            .begin_log_with(&mut text, &mut self.serializer)?;
        let mut line = |histogram, tag| {
            let written = writer.write_histogram(histogram, from, measured.elapsed, tag);
            written.map_err(|error| io::Error::other(error.to_string()))
        };
        match &measured.corrected {
            None => line(&measured.uncorrected, None)?,
            Some(corrected) => {
                line(corrected, Tag::new("corrected"))?;
                line(&measured.uncorrected, Tag::new("uncorrected"))?;
            }
        }
        let mut lines = if self.has_head { Vec::new() } else { self.head()? };
        // The builder writes the divisor again, which is in the header already.
        for line in text.split_inclusive(|&byte| byte == b'\n').filter(|line| line[0] != b'#') {
            lines.extend_from_slice(line);
        }
        self.has_head = true;
        self.file.write(&lines)
    }
}
