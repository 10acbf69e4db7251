"""A QEMU that is asked over qtest: no instruction of a guest runs, its CPU halts."""
import os, subprocess, time


class Machine:
    """A q35 machine with these further arguments. What is asked is answered at once, or it is an error."""

    def __init__(self, *arguments):
        with open('halt', 'wb') as firmware:
            firmware.write(b'\xf4' * 65536)
        self.qemu = subprocess.Popen(
            [os.environ['QEMU'], '-nodefaults', '-display', 'none', '-machine', 'q35', '-accel', 'tcg', '-bios', 'halt',
             '-qtest', 'stdio', '-qtest-log', 'none', *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=open('qemu.log', 'w'), text=True)

    def ask(self, line):
        self.qemu.stdin.write(line + '\n')
        self.qemu.stdin.flush()
        answer = self.qemu.stdout.readline().split()
        assert answer and answer[0] == 'OK', answer
        return int(answer[1], 16) if len(answer) > 1 else None

    def end(self):
        self.qemu.kill()
        self.qemu.wait()


def wait_for(condition, what='nothing happens'):
    until = time.time() + 120
    while not condition():
        assert time.time() < until, what


def verdict(is_same):
    """Ends the script."""
    print('as found' if is_same else 'it has CHANGED')
    raise SystemExit(not is_same)
