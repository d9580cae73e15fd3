from workers.openmp import spare_other_processes

spare_other_processes()  # as a worker does
