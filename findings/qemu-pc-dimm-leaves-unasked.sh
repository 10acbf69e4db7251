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
# Needs Debian 12's apt-get, dpkg-deb and python3. Exit status 0: it is still so.
set -euo pipefail
version=1:7.2+dfsg-7+deb12u18+b3

work=$(mktemp -d)
trap 'rm -rf -- "$work"' EXIT
cd -- "$work"
pinned=("qemu-system-x86=$version" "qemu-system-common=$version" "qemu-system-data=${version%+b3}")
# Of the libraries that it needs, those that are not there.
missing=$(apt-get install -s --no-install-recommends "${pinned[@]}" | sed -n 's/^Inst \([^ ]*\) [^(]*(\([^ ]*\).*/\1=\2/p')
apt-get download -q "${pinned[@]}" $missing >apt.log 2>&1 || { cat apt.log >&2; exit 1; }
for package in ./*.deb; do dpkg-deb -x "$package" root; done
export QEMU=$work/qemu
printf '#!/bin/sh\nLD_LIBRARY_PATH=%s exec %s "$@"\n' "$work/root/usr/lib/x86_64-linux-gnu" \
    "$work/root/usr/bin/qemu-system-x86_64" >"$QEMU"
chmod +x "$QEMU"
"$QEMU" --version | head -n 1

python3 - <<'PYTHON'
import json, os, socket, subprocess, sys, time

open('halt', 'wb').write(b'\xf4' * 65536)
qemu = subprocess.Popen(
    [os.environ['QEMU'], '-nodefaults', '-display', 'none', '-machine', 'q35', '-accel', 'tcg', '-bios', 'halt',
     '-m', '128M,slots=2,maxmem=1G', '-object', 'memory-backend-ram,id=m,size=128M',
     '-device', 'pc-dimm,id=module,memdev=m', '-qtest', 'stdio', '-qtest-log', 'none',
     '-qmp', 'unix:qmp,server=on,wait=off'],
    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

def ask(line):
    qemu.stdin.write(line + '\n')
    qemu.stdin.flush()
    answer = qemu.stdout.readline().split()
    assert answer and answer[0] == 'OK', answer
    return int(answer[1], 16) if len(answer) > 1 else None

BASE, WORD = 1 << 32, 0x1122334455667788
load = lambda: ask(f'readq {BASE:#x}')

def flags():
    ask('outl 0xa00 0')
    return ask('inb 0xa14')

ask(f'writeq {BASE:#x} {WORD:#x}')
monitor = socket.socket(socket.AF_UNIX)
until = time.time() + 120
while monitor.connect_ex('qmp'):
    assert time.time() < until, 'no monitor'
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
qemu.kill()
same = (before == (1, ['module'], WORD) and after == (0, [], 0) and dropped == 0 and again == WORD
        and ('DEVICE_DELETED', 'module') in told)
print('as found' if same else 'it has CHANGED')
sys.exit(not same)
PYTHON
