//! What one instruction does: whether it is locked, whether it is a system call, and which memory
//! it accesses.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use iced_x86::{
    Decoder, DecoderOptions, InstructionInfoFactory, Mnemonic, OpAccess, Register, UsedMemory,
};
use nix::libc::user_regs_struct;

use crate::machine::Process;
use crate::sharing::Access;

/// The longest instruction, in bytes.
const LENGTH_MAX: usize = 15;

/// One instruction.
pub(crate) struct Instruction {
    /// An atomic read-modify-write: it has the prefix, or exchanges a register with memory.
    pub(crate) is_locked: bool,
    /// Whether it enters the kernel.
    pub(crate) is_call: bool,
    memory: Vec<UsedMemory>,
}

impl Instruction {
    fn decode(bytes: &[u8], address: u64) -> Self {
        let decoded = Decoder::with_ip(64, bytes, address, DecoderOptions::NONE).decode();
        assert!(!decoded.is_invalid(), "no instruction at {address:#x}: {bytes:x?}");
        let memory = InstructionInfoFactory::new().info(&decoded).used_memory().to_vec();
        let exchanges = decoded.mnemonic() == Mnemonic::Xchg && !memory.is_empty();
        Self {
            is_locked: decoded.has_lock_prefix() || exchanges,
            is_call: decoded.mnemonic() == Mnemonic::Syscall,
            memory,
        }
    }

    /// Address, bytes and kind of each access to memory, if the registers are these.
    pub(crate) fn accesses(&self, registers: &user_regs_struct) -> Vec<(u64, u64, Access)> {
        let access = |memory: &UsedMemory| {
            let kind = match memory.access() {
                OpAccess::Read | OpAccess::CondRead => Access::Read,
                OpAccess::Write
                | OpAccess::CondWrite
                | OpAccess::ReadWrite
                | OpAccess::ReadCondWrite => Access::Write,
                OpAccess::None | OpAccess::NoMemAccess => return None,
            };
            let value = |register: Register, _, _| Some(value(registers, register));
            let address = memory.virtual_address(0, value)?;
            Some((address, memory.memory_size().size() as u64, kind))
        };
        self.memory.iter().filter_map(access).collect()
    }
}

/// The value of a register that takes part in an address.
fn value(registers: &user_regs_struct, register: Register) -> u64 {
    match register.full_register() {
        Register::RAX => registers.rax,
        Register::RBX => registers.rbx,
        Register::RCX => registers.rcx,
        Register::RDX => registers.rdx,
        Register::RSI => registers.rsi,
        Register::RDI => registers.rdi,
        Register::RBP => registers.rbp,
        Register::RSP => registers.rsp,
        Register::R8 => registers.r8,
        Register::R9 => registers.r9,
        Register::R10 => registers.r10,
        Register::R11 => registers.r11,
        Register::R12 => registers.r12,
        Register::R13 => registers.r13,
        Register::R14 => registers.r14,
        Register::R15 => registers.r15,
        Register::RIP => registers.rip,
        Register::FS => registers.fs_base,
        Register::GS => registers.gs_base,
        // The base of the other segments is 0 in 64-bit mode.
        Register::CS | Register::DS | Register::ES | Register::SS => 0,
        other => panic!("an address with the register {other:?}"),
    }
}

/// The instructions of a process, each decoded once.
pub(crate) struct Code {
    memory: File,
    known: HashMap<u64, Instruction>,
}

impl Code {
    /// Of this process.
    pub(crate) fn of(process: Process) -> Self {
        let memory = File::open(format!("/proc/{}/mem", process.0)).unwrap();
        Self { memory, known: HashMap::new() }
    }

    /// The instruction at this address.
    pub(crate) fn at(&mut self, address: u64) -> &Instruction {
        self.known.entry(address).or_insert_with(|| {
            let mut bytes = [0; LENGTH_MAX];
            // Fewer at the end of a mapping.
            let length = self.memory.read_at(&mut bytes, address).unwrap();
            Instruction::decode(&bytes[..length], address)
        })
    }
}

#[test]
fn locked_instructions_are_recognised() {
    let is_locked = |bytes: &[u8]| Instruction::decode(bytes, 0x1000).is_locked;
    assert!(is_locked(&[0xf0, 0x48, 0x0f, 0xb1, 0x0f]), "lock cmpxchg [rdi], rcx");
    assert!(is_locked(&[0xf0, 0xff, 0x07]), "lock inc dword [rdi]");
    assert!(is_locked(&[0x87, 0x07]), "xchg [rdi], eax");
    assert!(!is_locked(&[0x87, 0xc8]), "xchg eax, ecx");
    assert!(!is_locked(&[0xff, 0x07]), "inc dword [rdi]");
}

#[test]
fn addresses_are_calculated() {
    // mov [rdi + rcx * 8 + 16], rax
    let store = Instruction::decode(&[0x48, 0x89, 0x44, 0xcf, 0x10], 0x1000);
    let mut registers = user_regs_struct { rdi: 0x5000, rcx: 2, ..zeroed() };
    assert_eq!(store.accesses(&registers), [(0x5020, 8, Access::Write)]);
    // mov rax, fs:[0x28]
    let load = Instruction::decode(&[0x64, 0x48, 0x8b, 0x04, 0x25, 0x28, 0, 0, 0], 0x1000);
    registers.fs_base = 0x7000;
    assert_eq!(load.accesses(&registers), [(0x7028, 8, Access::Read)]);
    // push rax
    registers.rsp = 0x9000;
    let push = Instruction::decode(&[0x50], 0x1000);
    assert_eq!(push.accesses(&registers), [(0x8ff8, 8, Access::Write)]);
}

/// Registers that are all 0.
#[cfg(test)]
fn zeroed() -> user_regs_struct {
    user_regs_struct {
        r15: 0,
        r14: 0,
        r13: 0,
        r12: 0,
        rbp: 0,
        rbx: 0,
        r11: 0,
        r10: 0,
        r9: 0,
        r8: 0,
        rax: 0,
        rcx: 0,
        rdx: 0,
        rsi: 0,
        rdi: 0,
        orig_rax: 0,
        rip: 0,
        cs: 0,
        eflags: 0,
        rsp: 0,
        ss: 0,
        fs_base: 0,
        gs_base: 0,
        ds: 0,
        es: 0,
        fs: 0,
        gs: 0,
    }
}
