from workers.process.thread_spin import spare_other_processes

spare_other_processes()  # as a worker does
