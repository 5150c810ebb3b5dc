module github.com/holdfast-dev/holdfast/test/lab/storage

go 1.26.0
