#!/usr/bin/env bash
# QEMU 7.2.22 (Debian 12): a pc-dimm leaves by a port write of the guest, although nobody asked for its removal; loads
# give 0 then.
#
# Expected: the ejection register (bit 3 of port 0xa14, docs/specs/acpi_mem_hotplug.rst) ends a removal that `device_del`
# began, and does nothing otherwise; and memory that is not there reads as ones, as on a PCI bus.
# Seen: it takes the module out at any time. No request, no event before it: afterwards there is DEVICE_DELETED. Loads
# give 0, and stores go nowhere, without an error: a page of it seems to be zeroed, not gone. The memory backend stays,
# and `device_add` of it brings the old contents back.
#
# Needs Debian 12's apt-get, dpkg-deb and python3. Exit status: see common.sh.
here=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")
source "$here/common.sh"
qemu_of_debian_12

PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=$here python3 - <<'PYTHON'
import json, socket
from qtest import Machine, verdict, wait_for

machine = Machine('-m', '128M,slots=2,maxmem=1G', '-object', 'memory-backend-ram,id=m,size=128M',
                  '-device', 'pc-dimm,id=module,memdev=m', '-qmp', 'unix:qmp,server=on,wait=off')
ask = machine.ask

BASE, WORD = 1 << 32, 0x1122334455667788
load = lambda: ask(f'readq {BASE:#x}')

def flags():
    ask('outl 0xa00 0')
    return ask('inb 0xa14')

ask(f'writeq {BASE:#x} {WORD:#x}')
monitor = socket.socket(socket.AF_UNIX)
wait_for(lambda: monitor.connect_ex('qmp') == 0, 'no monitor')
lines = monitor.makefile('rw')
events = []
def order(name, **arguments):
    json.dump({'execute': name, 'arguments': arguments}, lines)
    lines.write('\n')
    lines.flush()
    while True:
        message = json.loads(lines.readline())
        if 'event' in message:
            events.append((message['event'], message['data'].get('device')))
        elif 'QMP' not in message:
            return message['return']
order('qmp_capabilities')
modules = lambda: [module['data']['id'] for module in order('query-memory-devices')]

print(f'before: flags {flags():#x}, modules {modules()}, a load gives {load():#x}')
before = (flags(), modules(), load())
assert not events, events
ask('outb 0xa14 8')
after = (flags(), modules(), load())
ask(f'writeq {BASE:#x} 1')
dropped = load()
told = list(events)
print(f'after: flags {after[0]:#x}, modules {after[1]}, a load gives {after[2]:#x}, and after a store {dropped:#x}; {told}')
order('device_add', driver='pc-dimm', id='again', memdev='m')
again = load()
print(f'added again: a load gives {again:#x}')
machine.end()
verdict(before == (1, ['module'], WORD) and after == (0, [], 0) and dropped == 0 and again == WORD
        and ('DEVICE_DELETED', 'module') in told)
PYTHON
