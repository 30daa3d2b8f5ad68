//! The HdrHistogram log: a histogram for each interval, in the format that the HdrHistogram tools
//! read. Values are nanoseconds; the maximum in clear text is in milliseconds, as those tools
//! expect.

use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};

use crate::files::Replacement;
use crate::measure::Measured;

/// Divides values for the clear text: nanoseconds to milliseconds.
const MILLISECOND: f64 = 1e6;

/// The log under way. Lines are complete in the file as soon as they are written.
pub(crate) struct Log {
    file: Replacement,
    started: SystemTime,
    /// Whether what stands above the histograms is written.
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

    /// All times count from `started`.
    pub(crate) fn begin(&mut self, started: SystemTime) {
        self.started = started;
    }

    /// What stands above the histograms.
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

    /// Adds an interval that began `from` after the start: with a schedule two histograms, told
    /// apart by their tags.
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
        // The builder states the divisor, which the file's head has stated already.
        for line in text.split_inclusive(|&byte| byte == b'\n').filter(|line| line[0] != b'#') {
            lines.extend_from_slice(line);
        }
        self.has_head = true;
        self.file.write(&lines)
    }
}
