//! Names for addresses of a process: the function of an instruction, the mapping of a cache line.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::machine::Process;

/// A part of the address space.
struct Mapping {
    start: u64,
    end: u64,
    name: String,
}

/// The address space of a process.
pub(crate) struct Names {
    program: PathBuf,
    mappings: Vec<Mapping>,
}

impl Names {
    /// Of this process, as it is now.
    pub(crate) fn of(process: Process) -> Self {
        let program = fs::read_link(format!("/proc/{}/exe", process.0)).unwrap();
        let maps = fs::read_to_string(format!("/proc/{}/maps", process.0)).unwrap();
        let mapping = |line: &str| {
            let mut fields = line.split_whitespace();
            let (start, end) = fields.next()?.split_once('-')?;
            let name = fields.nth(4).unwrap_or("anonymous memory").to_owned();
            let number = |text| u64::from_str_radix(text, 16).ok();
            Some(Mapping { start: number(start)?, end: number(end)?, name })
        };
        Self { program, mappings: maps.lines().filter_map(mapping).collect() }
    }

    fn mapping(&self, address: u64) -> Option<&Mapping> {
        self.mappings.iter().find(|it| (it.start..it.end).contains(&address))
    }

    /// The mapping in which `address` is, and where in it.
    pub(crate) fn place(&self, address: u64) -> String {
        match self.mapping(address) {
            Some(Mapping { start, name, .. }) => format!("{name}+{:#x}", address - start),
            None => format!("{address:#x}"),
        }
    }

    /// The functions in which these instructions are, with those that were inlined, if addr2line(1)
    /// is here. It reads the whole program, so all are asked for at once.
    pub(crate) fn functions(&self, addresses: &BTreeSet<u64>) -> BTreeMap<u64, String> {
        let mut functions: BTreeMap<u64, String> =
            addresses.iter().map(|&address| (address, self.place(address))).collect();
        let program = self.program.to_str().unwrap();
        let base = self.mappings.iter().find(|it| it.name == program).map(|it| it.start);
        let is_ours = |&address: &u64| self.mapping(address).is_some_and(|it| it.name == program);
        let ours: Vec<u64> = addresses.iter().copied().filter(is_ours).collect();
        let (Some(base), false) = (base, ours.is_empty()) else { return functions };
        let offsets = ours.iter().map(|address| format!("{:#x}", address - base));
        let mut command = Command::new("addr2line");
        let output = command.args(["-aCfipse", program]).args(offsets).output();
        let Ok(output) = output else { return functions };
        // Each address has a line "0x…: function", and one more for each function around it.
        let text = String::from_utf8_lossy(&output.stdout).replace("\n (inlined by) ", " < ");
        let lines = text.lines().filter_map(|line| line.split_once(": "));
        for (address, (_, function)) in ours.into_iter().zip(lines) {
            functions.insert(address, function.to_owned());
        }
        functions
    }
}
