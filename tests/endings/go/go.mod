module endings

go 1.25
