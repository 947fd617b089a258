// Allocates and drops objects all the time from two threads, and checks what it holds; tests/e2e/test_programs.py runs it.
import java.util.Arrays;
import java.util.HashMap;
import java.util.Map;
import java.util.Random;

public class Allocate {
    record Entry(int number, byte[] bytes, String text) {}

    static final class Worker extends Thread {
        private final Map<Integer, Entry> held = new HashMap<>();
        private final Random random;
        volatile int turn;

        Worker(int seed) {
            random = new Random(seed);
            setDaemon(true);
        }

        private void step() {
            int slot = random.nextInt(300);
            Entry had = held.remove(slot);
            if (had == null) {
                byte[] bytes = new byte[new int[] {40, 3000, 20000, 200000}[random.nextInt(4)]];
                Arrays.fill(bytes, (byte) (turn % 251));
                held.put(slot, new Entry(turn, bytes, "turn " + turn));
                return;
            }
            for (byte b : had.bytes()) if (b != (byte) (had.number() % 251)) fail(slot, had.number());
            if (!had.text().equals("turn " + had.number())) fail(slot, had.number());
        }

        private static void fail(int slot, int number) {
            System.out.println("FAIL slot " + slot + " of turn " + number);
            Runtime.getRuntime().halt(1);
        }

        @Override
        public void run() {
            try {
                for (;; Thread.sleep(5))
                    for (int i = 0; i < 20; ++i, ++turn) step();
            } catch (InterruptedException e) {
                fail(-1, turn);
            }
        }
    }

    public static void main(String[] arguments) throws InterruptedException {
        Worker[] workers = {new Worker(1), new Worker(2)};
        for (Worker worker : workers) worker.start();
        Runtime.getRuntime().addShutdownHook(new Thread(() -> System.out.println("done")));
        System.out.println("ready");
        for (;; Thread.sleep(20)) System.out.println("ok " + (workers[0].turn + workers[1].turn));
    }
}
