#!/usr/bin/env bash
# QEMU 7.2.22 (Debian 12): a read by NVMe whose DMA the IOMMU blocked completes with status 0.
#
# Expected: status 4, "Data Transfer Error" (NVMe 1.4, generic command status), as from a controller whose write over PCIe failed.
# Seen: status 0, and the buffer as it was. That nothing arrived is told by the IOMMU's fault record alone. So a driver
# that believes the status hands on what the buffer held before; who takes a page away from a device has to look at the
# IOMMU's faults.
#
# Over qtest, with a CPU that halts: an IOMMU domain in which the queues are mapped and the buffer is not, and one read;
# then the buffer is mapped, and the same read is done again. A read beyond the disk shows that errors do arrive.
#
# Needs Debian 12's apt-get, dpkg-deb and python3. Exit status: see common.sh.
here=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")
source "$here/common.sh"
qemu_of_debian_12

PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=$here python3 - <<'PYTHON'
import struct
from qtest import Machine, verdict, wait_for

SECTOR = bytes(range(256)) * 2
open('disk', 'wb').write(SECTOR * 2048)
machine = Machine('-m', '64M', '-device', 'intel-iommu', '-drive', 'if=none,id=d,format=raw,file=disk',
                  '-device', 'nvme,serial=1,drive=d,addr=4')
ask = machine.ask

def config(register, value):
    ask(f'outl 0xcf8 {1 << 31 | 4 << 11 | register:#x}')
    ask(f'outl 0xcfc {value:#x}')

def write4(at, value): ask(f'writel {at:#x} {value:#x}')
def write8(at, value): ask(f'writeq {at:#x} {value:#x}')
def read4(at): return ask(f'readl {at:#x}')
def read8(at): return ask(f'readq {at:#x}')
def put(at, data): ask(f'write {at:#x} {len(data):#x} 0x{data.hex()}')
def get(at, n): return ask(f'read {at:#x} {n:#x}').to_bytes(n, 'big')

BAR, IOMMU = 0xc0000000, 0xfed90000
ROOT, CONTEXT, LEVEL3, LEVEL2, LEVEL1 = range(0x100000, 0x105000, 0x1000)
ASQ, ACQ, SQ, CQ, BUFFER = range(0x200000, 0x205000, 0x1000)
entry_of = lambda page: LEVEL1 + (page >> 12 & 511) * 8

config(0x10, BAR)   # BAR 0
config(0x14, 0)
config(0x04, 6)     # memory and bus mastering

# Root entry of bus 0, context entry of device 4 (39 bits, domain 1), and the pages of the four queues.
write8(ROOT, CONTEXT | 1)
write8(CONTEXT + 4 * 8 * 16, LEVEL3 | 1)
write8(CONTEXT + 4 * 8 * 16 + 8, 1 << 8 | 1)
write8(LEVEL3, LEVEL2 | 3)
write8(LEVEL2 + 8, LEVEL1 | 3)
for page in (ASQ, ACQ, SQ, CQ):
    write8(entry_of(page), page | 3)
write8(IOMMU + 0x20, ROOT)
write4(IOMMU + 0x18, 1 << 30)
write4(IOMMU + 0x18, 1 << 31)
assert read4(IOMMU + 0x1c) >> 30 == 3, 'translation is not on'

# Admin queues of 16, the controller enabled.
write4(BAR + 0x24, 15 << 16 | 15)
write8(BAR + 0x28, ASQ)
write8(BAR + 0x30, ACQ)
write4(BAR + 0x14, 0x460001)
wait_for(lambda: read4(BAR + 0x1c) & 1)

done = {}
def command(queue, opcode, prp, nsid=0, words=(0, 0, 0)):
    """Does one command and answers its status."""
    nth = done.get(queue, 0)
    done[queue] = nth + 1
    sq, cq = ((ASQ, ACQ), (SQ, CQ))[queue]
    put(sq + 64 * nth, struct.pack('<IIQQQQ6I', opcode | nth << 16, nsid, 0, 0, prp, 0, *words, 0, 0, 0))
    write4(BAR + 0x1000 + 8 * queue, nth + 1)
    wait_for(lambda: get(cq + 16 * nth + 14, 1)[0] & 1)
    write4(BAR + 0x1004 + 8 * queue, nth + 1)
    return struct.unpack('<H', get(cq + 16 * nth + 14, 2))[0] >> 1

assert command(0, 5, CQ, words=(15 << 16 | 1, 1, 0)) == 0           # create a completion queue
assert command(0, 1, SQ, words=(15 << 16 | 1, 1 << 16 | 1, 0)) == 0  # and a submission queue
OLD = b'\xee' * 512
put(BUFFER, OLD)

def read(what, block=0):
    status = command(1, 2, BUFFER, nsid=1, words=(block, 0, 0))
    held = {OLD: 'what it held before', SECTOR: 'the sector'}.get(get(BUFFER, 512), 'something else')
    record = IOMMU + (read8(IOMMU + 0x08) >> 24 & 0x3ff) * 16
    fault, why = read8(record), read8(record + 8)
    blocked = f'a fault at {fault:#x}' if why >> 63 else 'no fault'
    write4(record + 12, 1 << 31)
    print(f'{what}: status {status:#x}, the buffer has {held}, the IOMMU has recorded {blocked}')
    return status, held, blocked

blocked = read('buffer not mapped')
write8(entry_of(BUFFER), BUFFER | 3)
write8(IOMMU + 0x28, 1 << 63 | 1 << 61)
mapped = read('buffer mapped')
beyond = read('beyond the disk', 1 << 30)
machine.end()
verdict(blocked == (0, 'what it held before', f'a fault at {BUFFER:#x}') and mapped == (0, 'the sector', 'no fault')
        and beyond[0] & 0xff == 0x80)
PYTHON
