// A pool of threads that sleep between calls.
//
// Why a pool: starting a thread costs as much as several views, for each of the cores, at every call. Why our own:
// torch brings its OpenMP runtime under a private name, so that linking OpenMP would load a second one, whose idle
// threads spin on the cores that torch computes on. Threads that sleep disturb nobody.

#include "parallel.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>

#ifndef _WIN32
#include <pthread.h>
#include <signal.h>
#endif

namespace simclr {
namespace {

using Work = std::function<void(std::size_t, std::size_t)>;

struct Job {
    const Work &work;
    const std::size_t count, grain;
    std::atomic<std::size_t> next{0};
    // Guarded by the pool's mutex: who takes part beside the caller, and what they threw.
    unsigned helpers = 0;
    std::exception_ptr error;
    std::condition_variable left;

    Job(const Work &work, std::size_t count, std::size_t grain) : work(work), count(count), grain(grain) {}

    std::exception_ptr take_part() {
        try {
            for (;;) {
                const std::size_t begin = next.fetch_add(grain, std::memory_order_relaxed);
                if (begin >= count) return nullptr;
                work(begin, std::min(begin + grain, count));
            }
        } catch (...) {
            next.store(count, std::memory_order_relaxed);  // nobody starts another piece
            return std::current_exception();
        }
    }
};

class Pool {
public:
    void run(Job &job, unsigned wanted) {
        {
            std::lock_guard lock(mutex);
            try {
                while (threads < wanted) start_thread();
            } catch (const std::system_error &) {
                // The system grants no more threads; the caller does the work with those that there are.
            }
            invitations.insert(invitations.end(), wanted, &job);
        }
        for (unsigned i = 0; i < wanted; ++i) wake.notify_one();
        const std::exception_ptr error = job.take_part();

        std::unique_lock lock(mutex);
        // Threads that are busy with another caller's work are not waited for.
        invitations.erase(std::remove(invitations.begin(), invitations.end(), &job), invitations.end());
        job.left.wait(lock, [&] { return job.helpers == 0; });
        if (error) std::rethrow_exception(error);
        if (job.error) std::rethrow_exception(job.error);
    }

private:
    std::mutex mutex;
    std::condition_variable wake;
    std::deque<Job *> invitations;
    unsigned threads = 0;

    void start_thread() {
#ifndef _WIN32
        // Signals are for Python's threads: one that was delivered here would not interrupt a sleeping main thread.
        sigset_t all, before;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        struct Restore {
            const sigset_t &mask;
            ~Restore() { pthread_sigmask(SIG_SETMASK, &mask, nullptr); }
        } restore{before};
#endif
        std::thread([this] { help(); }).detach();
        ++threads;
    }

    [[noreturn]] void help() {
        std::unique_lock lock(mutex);
        for (;;) {
            wake.wait(lock, [&] { return !invitations.empty(); });
            Job &job = *invitations.front();
            invitations.pop_front();
            ++job.helpers;
            lock.unlock();
            std::exception_ptr error = job.take_part();
            lock.lock();
            if (error) job.error = error;
            // Under the lock: the job lives on its caller's stack and is gone once the caller has seen zero.
            if (--job.helpers == 0) job.left.notify_one();
        }
    }
};

// Never destroyed: its threads may be asleep in it when the process ends.
std::atomic<Pool *> pool{nullptr};

#ifndef _WIN32
// A forked child has none of the threads, and perhaps a mutex that was locked by one of them: it starts anew.
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { pool.store(nullptr); });
#endif

Pool &the_pool() {
    Pool *current = pool.load();
    if (current == nullptr) {
        auto *fresh = new Pool;
        if (pool.compare_exchange_strong(current, fresh)) return *fresh;
        delete fresh;  // another thread was first
    }
    return *current;
}

}  // namespace

void share(std::size_t count, std::size_t grain, unsigned threads, const Work &work) {
    const std::size_t pieces = (count + grain - 1) / grain;
    const auto helpers = static_cast<unsigned>(std::min<std::size_t>(threads, pieces));
    if (helpers <= 1) {
        if (count > 0) work(0, count);
        return;
    }
    Job job(work, count, grain);
    the_pool().run(job, helpers - 1);
}

}  // namespace simclr
