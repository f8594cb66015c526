// Threads for whoever has tasks: a few pools per process, for kernels and optimisers.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <system_error>
#include <thread>

#if !defined(_WIN32)
#include <unistd.h>
#endif

namespace nif {

// Threads that wait for work. The calling thread works too; who comes late finds nothing to do and
// is not waited for.
class Pool {
  public:
    // Call work(context, task, worker) for every task below `tasks`, workers being numbered from 0.
    using Work = void (*)(void* context, int64_t task, int worker);

    void run(Work work, void* context, int64_t tasks, int threads) {
        int helpers = (int)std::min<int64_t>(threads, tasks) - 1;
        if (helpers < 1) {
            for (int64_t i = 0; i < tasks; i++) work(context, i, 0);
            return;
        }
        {
            std::lock_guard<std::mutex> lock(mutex_);
            while ((int)started_ < helpers && start_one()) {
            }
            work_ = work;
            context_ = context;
            tasks_ = tasks;
            next_.store(0, std::memory_order_relaxed);
            places_ = helpers;
            busy_ = 0;
            joined_ = 0;
            round_.fetch_add(1, std::memory_order_release);
        }
        wake_.notify_all();
        take_tasks(0);
        std::unique_lock<std::mutex> lock(mutex_);
        places_ = 0;
        done_.wait(lock, [&] { return busy_ == 0; });
    }

  private:
    std::mutex mutex_;
    std::condition_variable wake_, done_;
    std::atomic<uint64_t> round_{0};
    std::atomic<int64_t> next_{0};
    Work work_ = nullptr;
    void* context_ = nullptr;
    int64_t tasks_ = 0;
    int places_ = 0, busy_ = 0, joined_ = 0;
    size_t started_ = 0;

    bool start_one() {
        try {
            std::thread(&Pool::serve, this, round_.load()).detach();
        } catch (const std::system_error&) {
            return false;  // no more threads to be had: work with those there are
        }
        started_++;
        return true;
    }

    void take_tasks(int worker) {
        for (;;) {
            int64_t task = next_.fetch_add(1, std::memory_order_relaxed);
            if (task >= tasks_) return;
            work_(context_, task, worker);
        }
    }

    void serve(uint64_t seen) {
        for (;;) {
            // the next round often follows within microseconds
            for (int i = 0; i < 400 && round_.load(std::memory_order_acquire) == seen; i++)
                std::this_thread::yield();
            int worker;
            {
                std::unique_lock<std::mutex> lock(mutex_);
                wake_.wait(lock, [&] { return round_.load() != seen; });
                seen = round_.load();
                if (places_ == 0) continue;
                places_--;
                busy_++;
                worker = ++joined_;
            }
            take_tasks(worker);
            std::lock_guard<std::mutex> lock(mutex_);
            if (--busy_ == 0) done_.notify_one();
        }
    }
};

// The process's pools: callers at the same time have one each, and those beyond work alone. Threads
// do not survive a fork, so a child makes its own.
class Threads {
  public:
    static void run(Pool::Work work, void* context, int64_t tasks, int threads) {
        static Threads* const all = new Threads;  // never destroyed: threads may outlive main
        all->run_(work, context, tasks, threads);
    }

  private:
    static constexpr int kMost = 64;
    struct Place {
        std::atomic<bool> taken{false};
        Pool* pool = nullptr;
    };
    Place places_[kMost];
    std::atomic<long> process_{0};

    void run_(Pool::Work work, void* context, int64_t tasks, int threads) {
#if defined(_WIN32)
        const long process = 1;
#else
        const long process = (long)getpid();
#endif
        if (process_.load(std::memory_order_acquire) != process) {
            // the first call, or the first after a fork: whoever held the parent's pools is not here
            static std::mutex first;
            std::lock_guard<std::mutex> lock(first);
            if (process_.load(std::memory_order_relaxed) != process) {
                for (Place& place : places_) {
                    place.pool = nullptr;
                    place.taken.store(false);
                }
                process_.store(process, std::memory_order_release);
            }
        }
        if (threads > 1) {
            for (Place& place : places_) {
                bool free = false;
                if (!place.taken.compare_exchange_strong(free, true)) continue;
                if (!place.pool) place.pool = new Pool;
                place.pool->run(work, context, tasks, threads);
                place.taken.store(false);
                return;
            }
        }
        for (int64_t i = 0; i < tasks; i++) work(context, i, 0);
    }
};

}  // namespace nif
