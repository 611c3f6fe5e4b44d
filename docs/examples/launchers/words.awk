{ words += NF }
END { print words > "count.txt" }
