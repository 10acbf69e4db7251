"""gdb commands for the Unplug kernel.

    ./run-qemu.sh --debug            in one terminal
    gdb KERNEL -x boot/gdb/unplug.py in another; run-qemu.sh prints the exact line

Reading this file connects to QEMU and runs to the kernel's entry point, with the symbols where the loader has put the
kernel. After that there are two commands more:

    unplug-symbols [BASE]   load the symbols at another base: the console's line `@kernel base=0x...` says which
    pagewalk ADDR [CR3]     walk the page tables through physical memory, and show every entry on the way
"""

import os
import re

import gdb

# Where the kernel asks the loader to put it (`BootloaderConfig` in kernel/src/main.rs).
DEFAULT_BASE = 0xFFFF_FFFF_8000_0000

# Intel SDM volume 3A, table 4-15 and those before it: the bits of an entry.
PRESENT, LARGE, NO_EXECUTE = 1 << 0, 1 << 7, 1 << 63
FLAGS = ((1, "write"), (2, "user"), (3, "write-through"), (4, "uncached"), (5, "accessed"), (6, "dirty"), (8, "global"))
ADDRESS_MASK = 0x000F_FFFF_FFFF_F000
SIZES = {1: "4 KiB", 2: "2 MiB", 3: "1 GiB"}
LEVELS = {5: "PML5", 4: "PML4", 3: "PDPT", 2: "PD", 1: "PT"}


def physical_word(address):
    """The 8 bytes at a physical address, through QEMU's monitor: no mapping is needed, and none is used."""
    text = gdb.execute(f"monitor xp /1gx {address:#x}", to_string=True)
    found = re.search(r":\s*(0x[0-9a-f]+)", text)
    if not found:
        raise gdb.GdbError(f"no memory at physical {address:#x}: {text.strip()}")
    return int(found.group(1), 16)


def register(name):
    """A control register's value. As an expression it would be a structure of flags, which is no number."""
    found = re.search(r"0x[0-9a-f]+", gdb.execute(f"info registers {name}", to_string=True))
    if not found:
        raise gdb.GdbError(f"QEMU does not tell ${name}")
    return int(found.group(0), 16)


def number(expression):
    """An expression's value, in whatever language the current function is written."""
    return int(gdb.parse_and_eval(expression)) & (1 << 64) - 1


def describe(level, entry, leaf):
    """An entry's bits in words."""
    if not entry & PRESENT:
        return "not present"
    words = [name for bit, name in FLAGS if entry & 1 << bit and (leaf or name not in ("dirty", "global"))]
    words += ["no-execute"] if entry & NO_EXECUTE else []
    return (f"leaf of {SIZES[level]}" if leaf else "table") + ": " + " ".join(words)


def walk(address, cr3, depth):
    """Yields a line for each entry from the top-level table to the leaf or the hole, then what was found."""
    table = cr3 & ADDRESS_MASK
    for level in range(depth, 0, -1):
        shift = 12 + 9 * (level - 1)
        index = address >> shift & 0x1FF
        entry = physical_word(table + 8 * index)
        leaf = level == 1 or (level <= 3 and bool(entry & LARGE))
        yield f"{LEVELS[level]:>4} {table:#014x}[{index:3}] = {entry:#018x}  {describe(level, entry, leaf)}"
        if not entry & PRESENT:
            yield f"{address:#x} is not mapped"
            return
        if leaf:
            inside = (1 << shift) - 1
            yield f"{address:#x} is physical {(entry & ADDRESS_MASK & ~inside) | (address & inside):#x}"
            return
        table = entry & ADDRESS_MASK


class PageWalk(gdb.Command):
    """pagewalk ADDR [CR3]: walk the page tables for ADDR, from the CPU's CR3 or another one."""

    def __init__(self):
        super().__init__("pagewalk", gdb.COMMAND_DATA)

    def invoke(self, argument, from_tty):
        words = gdb.string_to_argv(argument)
        if len(words) not in (1, 2):
            raise gdb.GdbError("usage: pagewalk ADDR [CR3]")
        values = [number(word) for word in words]
        depth = 5 if register("cr4") & 1 << 12 else 4
        for line in walk(values[0], values[1] if len(values) > 1 else register("cr3"), depth):
            print(line)


class Symbols(gdb.Command):
    """unplug-symbols [BASE]: load the kernel's symbols for a kernel that was loaded at BASE."""

    def __init__(self):
        super().__init__("unplug-symbols", gdb.COMMAND_FILES)

    def invoke(self, argument, from_tty):
        base = number(argument) if argument else DEFAULT_BASE
        load_symbols(gdb.current_progspace().filename, base)


def load_symbols(kernel, base):
    """Replaces the symbols of the file by those of the kernel as it is loaded."""
    gdb.execute(f"symbol-file -o {base:#x} {kernel}", to_string=True)


def entry_point():
    """The entry point's address in the ELF file."""
    found = re.search(r"Entry point: (0x[0-9a-f]+)", gdb.execute("info files", to_string=True))
    if not found:
        raise gdb.GdbError("start gdb with the kernel's file: gdb KERNEL -x boot/gdb/unplug.py")
    return int(found.group(1), 16)


def start():
    """Connects, and runs to the kernel's first instruction."""
    entry = entry_point()
    gdb.execute("set pagination off")
    gdb.execute("set confirm off")
    gdb.execute(f"target remote {os.environ.get('UNPLUG_GDB', 'localhost:1234')}", to_string=True)
    load_symbols(gdb.current_progspace().filename, DEFAULT_BASE)
    gdb.execute(f"thbreak *{DEFAULT_BASE + entry:#x}")
    print("unplug: running the firmware and the loader to the kernel's entry point")
    gdb.execute("continue")


PageWalk()
Symbols()
start()
